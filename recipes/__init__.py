"""Complete runs that use the package as a user's own code would. They lie in a clone, not in the installed wheel."""
