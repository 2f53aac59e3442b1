"""Effect handlers: the built-in ones, and how a host's are adapted."""
