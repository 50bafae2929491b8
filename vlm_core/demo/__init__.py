"""The bundled demo checkpoint: generated scenes, its recipe, and its card."""
