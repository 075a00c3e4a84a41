"""The network of VPT (openai/Video-Pre-Training): convolutions, attention over past frames, and heads."""
