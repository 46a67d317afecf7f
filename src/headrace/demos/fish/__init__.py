"""The fish factory: predict now, learn the truth later, notice, retrain, serve."""
