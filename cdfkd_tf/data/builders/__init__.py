"""TFDS builders for what TFDS itself lacks."""
