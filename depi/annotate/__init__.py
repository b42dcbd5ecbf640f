"""`depi annotate`: instructions and camera views by a vision-language model, checked, as sidecars."""
