"""Reports for auditors: as of a checkpoint, the same bytes each time."""
