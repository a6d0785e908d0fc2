"""The demo: a procedural factory of defective objects, and the miniature CLIP trained on its pictures."""
