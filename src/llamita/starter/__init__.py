"""The quickstart's corpus, taken from the Python that is running, and the baselines it must beat.

Nothing here imports torch.
"""
