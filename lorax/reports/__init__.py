"""From a study or a sweep to tables, texts and pages."""
