"""Budgets: what a spool may take, what is refused where it is short, and what may go without a receipt (docs/budgets.md)."""
