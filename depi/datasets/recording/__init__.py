"""One dataset at rest: its files and formats, its tables, images and videos, its cameras and joints."""
