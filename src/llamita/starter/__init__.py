"""The quickstart's corpus, taken from the Python that is running, and the baselines it must beat.

Corpus, baselines and the Python check import no torch.
"""
