"""One module per array library, all of the same shape. See README.md in this folder."""
