"""Complete runs that use the package as any user would; part of a clone, not of the installed package."""
