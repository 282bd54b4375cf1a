"""Network policy: the languages of Kubernetes and Calico, one normal form, and what both say about a flow.

Way       text -> reader (plain values, lines kept) -> load (which kind is it?) -> parse_* with a cursor -> model (what
          was written) -> lower* (one object at a time) -> normal (one form for all) -> evaluate, and the compiler.
          model -> reference: the slow evaluator that follows the text of the specifications, for checking all others.
Beside    selector and index (who has which labels), flow (whose policy is asked, in which order), questions (flows as
          JSON lines), validate (what is legal but suspicious).
"""
