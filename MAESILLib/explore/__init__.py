"""The frozen encoder used without training: dense features, their colors, similar points, segments, surprise."""
