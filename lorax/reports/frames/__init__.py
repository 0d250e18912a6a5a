"""What tables, texts and figures are made from, as data frames and plain records; no drawing."""
