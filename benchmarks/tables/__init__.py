"""Writes the tables and pictures of the documents from measured files."""
