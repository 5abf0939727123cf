"""What the frozen encoder knows, without training: dense features, their colors, places that are alike."""
