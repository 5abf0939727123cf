"""What the frozen encoder knows of anatomy: a linear probe on its tokens against label maps."""
