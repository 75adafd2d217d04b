//! A hook of the nat table as nf_tables itself tells it, and moving our jump in it.
//!
//! iptables-nft reads every rule there is before it deletes one, which at 10,000 Services
//! takes longer than a repair may. A rule that the kernel told of can be handed back to it
//! as it is, at another place, in a transaction of a few hundred bytes.
//! The messages are those of `include/uapi/linux/netfilter/nf_tables.h`.

use crate::iptables::parse::{HookRule as ParsedRule, Leads};
use crate::netlink::{Message, nested, push_attribute};
use crate::precedence::{Misplacement, correction};
use crate::{KUBE_SERVICES, OwnChain};

const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_COMPAT: u16 = 5;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_JUMP`; a goto does not come back, so it is none of ours.
const JUMP: i32 = -3;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `struct nfgenmsg`.
const FIXED_PART: usize = 4;

/// A rule of a hook. Its handle tells it from every other that is or was there.
#[derive(Clone, Debug)]
pub(crate) struct HookRule {
    pub(crate) handle: u64,
    target: Target,
}

/// A rule with this handle is this rule: the kernel gives a changed one a new handle.
impl PartialEq for HookRule {
    fn eq(&self, other: &Self) -> bool {
        self.handle == other.handle
    }
}

#[derive(Clone, Debug)]
enum Target {
    /// Into a chain of ours.
    Own(OwnChain, Content),
    KubeServices,
    Elsewhere,
}

/// What a rule is made of, as the kernel tells it and takes it.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    attributes: Vec<(u16, Vec<u8>)>,
    /// The same without what changes by itself (counters).
    essence: Vec<u8>,
}

/// What is wrong with a hook, and how to set it right.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) because: Misplacement,
    /// The rules to delete.
    pub(crate) delete: Vec<u64>,
    /// The rule before which to put our jump; none: first of all.
    pub(crate) before: Option<u64>,
}

impl HookRule {
    /// Reads one rule of a dump.
    pub(crate) fn read(message: Message<'_>) -> Self {
        let mut rule = Self {
            handle: 0,
            target: Target::Elsewhere,
        };
        for (kind, value) in message.attributes(FIXED_PART) {
            match kind {
                RULE_HANDLE => {
                    rule.handle = value.try_into().map_or(0, u64::from_be_bytes);
                }
                RULE_EXPRESSIONS => rule.target = Target::read(message, value),
                _ => {}
            }
        }
        rule
    }

    /// The chain of ours that it leads into.
    pub(crate) fn leads_into(&self) -> Option<OwnChain> {
        match &self.target {
            Target::Own(chain, _) => Some(*chain),
            Target::KubeServices | Target::Elsewhere => None,
        }
    }

    /// What it is made of, if it leads into a chain of ours.
    pub(crate) fn content(&self) -> Option<&Content> {
        match &self.target {
            Target::Own(_, content) => Some(content),
            Target::KubeServices | Target::Elsewhere => None,
        }
    }

    fn leads(&self, ours: &Content) -> Leads {
        match &self.target {
            Target::Own(_, content) if content.essence == ours.essence => Leads::Ours,
            Target::Own(..) => Leads::OursAltered,
            Target::KubeServices => Leads::KubeServices,
            Target::Elsewhere => Leads::Elsewhere,
        }
    }
}

impl Target {
    fn read(message: Message<'_>, expressions: &[u8]) -> Self {
        let Some(name) = nested(expressions).find_map(|(_, element)| verdict_chain(element)) else {
            return Self::Elsewhere;
        };
        if name == KUBE_SERVICES.as_bytes() {
            return Self::KubeServices;
        }
        match std::str::from_utf8(name).ok().and_then(OwnChain::by_name) {
            Some(chain) => Self::Own(chain, Content::read(message)),
            None => Self::Elsewhere,
        }
    }
}

/// The chain that an expression sends packets to, if it does.
fn verdict_chain(expression: &[u8]) -> Option<&[u8]> {
    let of = |value, wanted| {
        nested(value)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value)
    };
    let verdict = of(
        of(of(expression, EXPRESSION_DATA)?, IMMEDIATE_DATA)?,
        DATA_VERDICT,
    )?;
    of(verdict, VERDICT_CHAIN)?.strip_suffix(b"\0")
}

impl Content {
    fn read(message: Message<'_>) -> Self {
        let mut content = Self {
            attributes: Vec::new(),
            essence: Vec::new(),
        };
        for (kind, value) in message.attributes(FIXED_PART) {
            match kind {
                RULE_EXPRESSIONS => {
                    for (_, expression) in nested(value).filter(|(_, e)| !is_counter(e)) {
                        push_attribute(&mut content.essence, LIST_ELEMENT, expression);
                    }
                    content.attributes.push((NESTED | kind, value.to_vec()));
                }
                RULE_COMPAT => content.attributes.push((NESTED | kind, value.to_vec())),
                RULE_USERDATA => {
                    push_attribute(&mut content.essence, kind, value);
                    content.attributes.push((kind, value.to_vec()));
                }
                _ => {}
            }
        }
        content
    }

    /// Adds it to a message that makes a rule.
    pub(crate) fn push_to(&self, payload: &mut Vec<u8>) {
        for (kind, value) in &self.attributes {
            push_attribute(payload, *kind, value);
        }
    }

    /// Whether it is a plain jump, as ours are, and no goto.
    fn is_jump(&self) -> bool {
        nested(&self.essence).any(|(_, expression)| is_jump(expression))
    }
}

fn is_counter(expression: &[u8]) -> bool {
    nested(expression).any(|(kind, value)| kind == EXPRESSION_NAME && value == b"counter\0")
}

fn is_jump(expression: &[u8]) -> bool {
    nested(expression)
        .filter(|(kind, _)| *kind == EXPRESSION_DATA)
        .flat_map(|(_, data)| nested(data))
        .filter(|(kind, _)| *kind == IMMEDIATE_DATA)
        .flat_map(|(_, data)| nested(data))
        .filter(|(kind, _)| *kind == DATA_VERDICT)
        .flat_map(|(_, verdict)| nested(verdict))
        .any(|(kind, code)| kind == VERDICT_CODE && code == JUMP.to_be_bytes())
}

/// Our jump in a hook that is known to be right.
pub(crate) fn our_jump(hook: &[HookRule], chain: OwnChain) -> Option<Content> {
    let mut ours = hook
        .iter()
        .filter(|rule| rule.leads_into() == Some(chain))
        .filter_map(HookRule::content);
    let first = ours.next().filter(|content| content.is_jump())?;
    ours.next().is_none().then(|| first.clone())
}

/// What is wrong with a hook; none when it is right. `ours` is our jump as it must be.
pub(crate) fn fault(hook: &[HookRule], ours: &Content) -> Option<Fault> {
    let parsed: Vec<ParsedRule<'_>> = hook
        .iter()
        .map(|rule| ParsedRule {
            spec: "",
            leads: rule.leads(ours),
        })
        .collect();
    let because = correction(&parsed)?.because;
    Some(Fault {
        because,
        delete: hook
            .iter()
            .filter(|rule| rule.leads_into().is_some())
            .map(|rule| rule.handle)
            .collect(),
        before: hook
            .iter()
            .find(|rule| matches!(rule.target, Target::KubeServices))
            .map(|rule| rule.handle),
    })
}
