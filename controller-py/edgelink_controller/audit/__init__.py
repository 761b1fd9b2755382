"""The audit log: who changed what, from where; rows are chained by hash."""
