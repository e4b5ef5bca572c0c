"""The drain: ranges of records and blobs go to a target; receipts come back into the journal."""
