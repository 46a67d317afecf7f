"""HTTP: predictions, training, the Open Inference Protocol, metrics. Models are known by `headrace.serve.models`."""
