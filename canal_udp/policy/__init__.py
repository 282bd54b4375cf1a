"""Network policy: the languages of Kubernetes and Calico, one normal form, and what both say about a flow.

Way       text -> reader (lines kept) -> parse_kubernetes, parse_cluster, parse_calico -> model (what was written)
          -> normal (one form for every kind) -> evaluate (fast, offline) and the compiler.
          model -> reference: the slow evaluator that follows the text of the specifications, for checking all others.
"""
