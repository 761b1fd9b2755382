"""Accounts that administer the controller, their sign-in and tokens."""
