"""The routes: a file each, with what a request says and what an answer holds."""
