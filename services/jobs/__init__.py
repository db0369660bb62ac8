"""What works on jobs: claims them, makes them by the executor that answers pictures, and tells of their end."""
