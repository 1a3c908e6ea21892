"""Video and image files in, video files out. Imports nothing of ours."""
