"""Whether an English sentence starts with a verb in the imperative, without a language model.

A list of common manipulation verbs decides nearly all cases. Any other word passes where it looks like a verb
(a verb's ending, or a prefix before a listed verb) or where an article, a number or "all" follows it, unless
its form or a second list says that it is not a verb. Verbs of speech are on the second list, because a robot
arm is not told to "say" or "ignore" something.
"""

_VERBS = """
    add adjust aim align approach arrange assemble attach balance bend bounce bring brush build bump
    button carry catch change circle clamp clean clear click clip close collect combine connect cover
    crush cut deliver detach dip discard dispense disconnect displace dispose distribute do draw drag
    drape drive drop dry dump dust eject empty enter erase exchange extend extract fasten feed fetch fill
    find finish fit fix flatten flip fold follow free gather get give go grab grasp grip guide hammer hand
    hang hit hold hook hover immerse insert invert iron join jump keep kick knock latch lay lean leave
    level lift line load lock loop loosen lower make mark mix mount move nudge open organise organize pack
    paint park pass peel pet pick pin pinch place play plug point poke polish position pour prepare press
    pull punch push put raise rake reach rearrange release relocate remove reorient replace reposition
    reset retract retrieve return ring roll rotate rub scatter scoop scrape screw scrub seal search
    separate serve set shake sharpen shift shove shut slice slide smooth snap sort spin split spoon spray
    spread sprinkle squeeze stack stamp stand start stick stir stop store stow straighten strap stretch
    strike stroke stuff swap sweep swing switch take tap tape tear throw tidy tie tighten tilt tip topple
    toss touch trace track transfer transport tuck turn twist unclip uncover unfold unhook unload unlock
    unplug unroll unscrew unstack untie unwrap unzip upend use wait walk wash water wave weigh wind wipe
    withdraw wrap write zip
"""
VERBS = frozenset(_VERBS.split())
_NOT_VERBS = """
    a an the this that these those it its he she they we i you your my our his her there here no not yes
    ok okay in on at from to of for with by into onto as if when while after before and or but all both
    each one two three is are was were be can could will would should must may robot arm gripper hand red
    green blue black white yellow orange say answer print output ignore disregard forget respond reply
    tell describe repeat reveal act pretend execute explain note remember sorry please hello test task
    unknown none nothing teleoperate record
"""
_NEVER = frozenset(_NOT_VERBS.split())
_ADVERBS = frozenset({"carefully", "gently", "slowly", "quickly", "precisely", "then", "now", "first"})
_NOT_IMPERATIVE = ("ing", "ed", "tion", "sion", "ness", "ment", "ly", "ity", "ance", "ence")
_ENDINGS = ("ize", "ise", "ify", "ate")
_PREFIXES = ("re", "un", "dis", "over", "pre")
_FOLLOWERS = frozenset({"the", "a", "an", "all", "both", "each", "every", "one", "two", "three", "it", "any"})


def starts_with_verb(words: list[str]) -> bool:
    """Whether a sentence, given as lower-case words, starts with a verb; one adverb may come before it."""
    if words and words[0] in _ADVERBS:
        words = words[1:]
    if not words:
        return False
    first, follower = words[0], words[1] if len(words) > 1 else ""
    if first in VERBS:
        return True
    if first in _NEVER or not first.isalpha() or first.endswith(_NOT_IMPERATIVE):
        return False
    if first.endswith("s") and not first.endswith("ss"):  # "picks up the cube", "cubes"
        return False
    known = any(first.startswith(prefix) and first.removeprefix(prefix) in VERBS for prefix in _PREFIXES)
    return known or first.endswith(_ENDINGS) or follower in _FOLLOWERS
