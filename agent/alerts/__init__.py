"""Alert rules: what they mean (docs/alerts.md), judged beside the run, and again from what is recorded."""
