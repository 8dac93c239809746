"""Doors to the libraries that people train with: one module each, which imports its library when it is imported itself.

The libraries are in the extra [integrations]; torchvision and timm in [vision].
"""
