"""Protocol, statistics, tables and figures: from records to what can be concluded. Torch-free."""
