"""Learning from corrections (DAgger): states that a policy's own mistakes lead to, labeled by an expert.

A policy is rolled out. Where it failed or hesitated the expert takes over from the state that the policy reached, and
the expert's actions are recorded as an episode (``corrections``, on the built-in tabletop). On a robot a person takes
over, and the recording marks these steps (``marked``). In both cases the episodes are added to the dataset and the
policy is fine-tuned on the whole dataset; ``rounds`` is the loop.

Ross, Gordon and Bagnell 2011 (DAgger); Kelly et al. 2019 (HG-DAgger: a person decides when to take over).
"""
