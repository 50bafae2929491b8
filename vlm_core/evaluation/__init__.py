"""Evaluation runs over any number of images, and the reports that people look at.

What a figure means is defined in :mod:`vlm_core.evaluate`; here it is measured piece by piece, so that memory does
not grow with the number of images: by at most an embedding an image where everything is ranked against everything.
"""
