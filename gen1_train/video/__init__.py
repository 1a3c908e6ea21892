"""Reads video and image files, and writes video files."""
