"""The asyncio API: stores, and runs seen and steered from outside.

Importing it does not import torch.
"""
