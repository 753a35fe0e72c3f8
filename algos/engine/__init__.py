"""What fast algorithms share: threads, compiled code, views of windows."""
