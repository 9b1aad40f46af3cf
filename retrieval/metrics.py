"""How vectors are compared: by the cosine or the product, of which the larger is nearer, or by the distance (not squared)."""

METRICS = ("cosine", "inner_product", "euclidean")
