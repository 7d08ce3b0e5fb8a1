"""Networks: backbones, students, generators, aggregators, and files of models."""
