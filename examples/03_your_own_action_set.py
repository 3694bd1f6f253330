"""An action set of your own: two operations as data, beside two that come with the package.

On the command line: instructgym run quickstart --action-set examples/03_your_own_action_set.py:PERSONAS
"""

import gymnasium

from instructgym import Instruction
from instructgym.envs import BUILTIN_ACTION_SETS, ActionSet, Rewrite

PERSONAS = ActionSet(
    "personas",
    (
        *BUILTIN_ACTION_SETS["core"].operations[:2],
        Rewrite("add_persona", "Rewrite the instruction so that a person with a stated profession asks it."),
        Rewrite("add_audience", "Rewrite the instruction so that it says whom the answer is for.", words=(5, 15)),
    ),
)

if __name__ == "__main__":
    env = gymnasium.make("instructgym:instructgym/InstructionEvolution-v0", action_set=PERSONAS, render_mode="ansi")
    env.reset(seed=5)
    for action in range(4):
        env.step(action)
    print(f"{PERSONAS.name} ({PERSONAS.hash}): {', '.join(PERSONAS.names)}\n")
    print(env.render())
    env.close()

    # What the expert is asked, word for word. (The simulated expert does not read it; a language model does.)
    operation = PERSONAS.operations[2]
    print(f"\n--- the prompt of {operation.name}")
    for message in operation.messages(Instruction("What does yield do?"), ()):
        print(f"{message.role}: {message.content}")
