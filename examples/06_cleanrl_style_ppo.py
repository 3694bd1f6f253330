"""PPO in one file, in the style of CleanRL: gymnasium.make, SyncVectorEnv and torch, and no agent of ours."""

import argparse
import time

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import instructgym  # noqa: F401  registers the ids

parser = argparse.ArgumentParser()
parser.add_argument("--env-id", default="instructgym/InstructionEvolution-v0")
parser.add_argument("--steps", type=int, default=2048, help="environment steps in all")
parser.add_argument("--num-envs", type=int, default=8)
parser.add_argument("--num-steps", type=int, default=64, help="steps of each env in a rollout")
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--gamma", type=float, default=0.99)
parser.add_argument("--gae-lambda", type=float, default=0.95)
parser.add_argument("--minibatches", type=int, default=4)
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--clip-coef", type=float, default=0.2)
parser.add_argument("--ent-coef", type=float, default=0.01)
parser.add_argument("--vf-coef", type=float, default=0.5)
parser.add_argument("--max-grad-norm", type=float, default=0.5)
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()


def layer(inputs: int, outputs: int, std: float = 2**0.5) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, std)
    nn.init.zeros_(linear.bias)
    return linear


class ActorCritic(nn.Module):
    def __init__(self, obs_dim: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(layer(obs_dim, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.actor = nn.Sequential(layer(obs_dim, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, actions, 0.01))

    def forward(self, obs, action=None):
        policy = Categorical(logits=self.actor(obs))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(obs).squeeze(-1)


torch.manual_seed(args.seed)
torch.set_num_threads(1)
# SAME_STEP resets an ended env in the step that ended it, so every row of a rollout is a real transition.
envs = gym.vector.SyncVectorEnv(
    [lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(args.env_id)) for _ in range(args.num_envs)],
    autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
)
model = ActorCritic(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, eps=1e-5)

rollout = (args.num_steps, args.num_envs)
obs = torch.zeros(*rollout, *envs.single_observation_space.shape)
actions = torch.zeros(rollout, dtype=torch.int64)
logprobs, rewards, dones, values = (torch.zeros(rollout) for _ in range(4))

started, returns = time.time(), []
next_obs = torch.as_tensor(envs.reset(seed=args.seed)[0])
updates = max(1, args.steps // (args.num_envs * args.num_steps))
for update in range(updates):
    optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - update / updates)
    for t in range(args.num_steps):
        obs[t] = next_obs
        with torch.no_grad():
            actions[t], logprobs[t], _, values[t] = model(next_obs)
        stepped, reward, terminated, truncated, infos = envs.step(actions[t].numpy())
        rewards[t] = torch.as_tensor(reward)
        # Truncation happens here only if a call to an endpoint fails; it is treated as an end, as CleanRL does.
        dones[t] = torch.as_tensor(terminated | truncated)
        next_obs = torch.as_tensor(stepped)
        if "final_info" in infos:
            returns += infos["final_info"]["episode"]["r"][infos["_final_info"]].tolist()

    with torch.no_grad():
        next_value = model.critic(next_obs).squeeze(-1)
    advantages, last = torch.zeros(rollout), torch.zeros(args.num_envs)
    for t in reversed(range(args.num_steps)):
        following = next_value if t == args.num_steps - 1 else values[t + 1]
        alive = 1.0 - dones[t]
        delta = rewards[t] + args.gamma * following * alive - values[t]
        advantages[t] = last = delta + args.gamma * args.gae_lambda * alive * last

    b_obs, b_actions, b_logprobs = obs.flatten(0, 1), actions.flatten(), logprobs.flatten()
    b_advantages, b_returns = advantages.flatten(), (advantages + values).flatten()
    for _ in range(args.epochs):
        for rows in torch.randperm(len(b_actions)).chunk(args.minibatches):
            _, logprob, entropy, value = model(b_obs[rows], b_actions[rows])
            ratio = (logprob - b_logprobs[rows]).exp()
            advantage = b_advantages[rows]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
            value_loss = 0.5 * (value - b_returns[rows]).pow(2).mean()
            loss = policy_loss - args.ent_coef * entropy.mean() + args.vf_coef * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()

    steps = (update + 1) * args.num_envs * args.num_steps
    recent = np.mean(returns[-100:]) if returns else float("nan")
    speed = steps / (time.time() - started)
    print(f"steps {steps:6d}  mean return of the last 100 episodes {recent:.3f}  {speed:.0f} steps/s")
envs.close()
