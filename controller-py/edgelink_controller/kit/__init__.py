"""Small tools that every domain uses and that know no domain."""
