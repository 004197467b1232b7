"""Layouts of data folders, one file each: from names of files and folders to records, without reading a pixel."""
