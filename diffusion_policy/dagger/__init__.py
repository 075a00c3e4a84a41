"""Learning from corrections (DAgger): what a policy's own mistakes lead to, labeled by somebody who knows better.

A policy is rolled out; where it failed or hesitated the expert takes over from the state that the policy reached, and
what the expert does from there is recorded as an episode (``corrections``, on the built-in tabletop). On a robot a
person takes over, and marks say at which steps (``marked``). Either way the episodes are added to the dataset and the
policy is fine-tuned on all of it; ``rounds`` is the loop.

Ross, Gordon and Bagnell 2011 (DAgger); Kelly et al. 2019 (HG-DAgger: a person decides when to take over).
"""
