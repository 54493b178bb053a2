"""Solvers: pure numerics on tensors, losses and linear maps, one method a file. They know no fit and no estimator.

- `gradient_features`: the map Φ: w₂ ↦ ω̄ᵀ J(x) w₂ and its transpose, in passes over kept samples;
- `kernel`: the tangent kernel Φ Φᵀ, by blocks;
- `folds`: training and validation parts of cross-validation;
- `probe`: step 2, the linear probe ω̄ on the activations;
- `probe_basis`: its problem in the eigenbasis of the activations, and L-BFGS or the closed form there;
- `probe_path`: its penalty, chosen on a path from heavy to light;
- `schedule`: the paper's schedules of Adam and SGD, as data;
- `first_order`: step 3 by a schedule, on minibatches, and how such a training goes on after an interruption;
- `finetune`: fine-tuning's optimizer and learning rate, chosen among candidates;
- `subspace`: step 3 without a learning rate, in a growing span of directions;
- `newton`: the minimum over such a span, by Newton's method in its few unknowns;
- `kronecker`: Kronecker factors of the gradient features: the directions' preconditioner, and the whitened metric;
- `dual`: step 3 for a squared loss in the samples' space, in closed form, with leave-one-out;
- `dual_newton`: the same space for any convex loss, by Newton's method.
"""
