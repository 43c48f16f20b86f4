"""Values that hold where nobody gives another one."""
