import numpy as np
import pytest
import torch

from instructgym.agents.policy_gradient.adam import Adam
from instructgym.agents.policy_gradient.mlp import ActorCritic
from instructgym.agents.policy_gradient.networks import masked_log_softmax, masked_probs


def test_illegal_actions_have_probability_exactly_zero_and_no_gradient():
    logits = np.random.default_rng(0).normal(0, 30, (200, 5)).astype(np.float32)
    mask = np.random.default_rng(1).random((200, 5)) < 0.5
    mask[:, 2] = True
    probs = masked_probs(logits, mask)
    assert (probs[~mask] == 0.0).all()
    assert probs.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-6)
    tensor = torch.tensor(logits, requires_grad=True)
    log_probs = masked_log_softmax(tensor, torch.tensor(mask))
    assert (log_probs.exp().detach().numpy()[~mask] == 0.0).all()
    assert log_probs.exp().detach().numpy() == pytest.approx(probs, abs=1e-6)
    entropy = -(log_probs.exp() * log_probs).sum()
    entropy.backward()
    assert torch.isfinite(entropy)
    assert (tensor.grad.numpy()[~mask] == 0.0).all()


def test_numpy_and_torch_see_the_same_network():
    network = ActorCritic(7, 3, (16, 8), seed=0)
    network.flat.add_(0.01)  # what an optimiser does: in place
    obs = np.random.default_rng(0).normal(size=(9, 7)).astype(np.float32)
    logits, values = network.forward(torch.from_numpy(obs))
    assert network.logits(obs) == pytest.approx(logits.detach().numpy(), abs=1e-6)
    assert network.values(obs) == pytest.approx(values.detach().numpy(), abs=1e-6)


def test_a_network_without_hidden_layers_is_linear():
    network = ActorCritic(2, 2, (), seed=0)
    weight = network.state_dict()["policy.0.weight"]
    obs = np.ones((1, 2), np.float32)
    assert network.logits(obs) == pytest.approx(obs @ weight.T)


def test_weights_are_orthogonal_and_a_function_of_the_seed():
    first, again, other = (ActorCritic(4, 2, (8, 8), seed) for seed in (1, 1, 2))
    assert torch.equal(first.flat, again.flat)
    assert not torch.equal(first.flat, other.flat)
    weight = first.state_dict()["policy.1.weight"]
    assert weight @ weight.T == pytest.approx(2 * np.eye(8), abs=1e-5)


def test_adam_equals_torchs_with_clipped_gradients():
    start = torch.randn(50, generator=torch.Generator().manual_seed(0))
    theirs = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([theirs], lr=1e-2, eps=1e-5)
    ours, adam = start.clone(), Adam(50, eps=1e-5)
    for step in range(20):
        grad = torch.randn(50, generator=torch.Generator().manual_seed(step)) * (0.01 if step % 2 else 1.0)
        theirs.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        optimiser.step()
        adam.step(ours, grad.clone(), 1e-2, 0.5)
    assert ours.numpy() == pytest.approx(theirs.detach().numpy(), abs=1e-6)


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(ValueError, match=r"weights 'policy.0.weight': expected shape \(8, 4\), got shape \(8, 3\)."):
        ActorCritic(4, 2, (8,), 0).load_state_dict(ActorCritic(3, 2, (8,), 0).state_dict())
