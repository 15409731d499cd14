"""Training deepfake image detectors in JAX: MobileNetV4-Conv-Small behind a Gabor front end."""
