//! What of iptables and the kernel the rules may be made of.

use crate::{KernelPath, Mark, Sharing};

/// What of iptables and the kernel the rules may be made of; not every kernel has it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// An IP set holds all portals, so that what goes to none of them passes by the list.
    pub portal_set: bool,
    /// Portals may be served by the kernel: it can mark, choose by chance, tell the host's own
    /// addresses, and masquerade. It also takes [`portal_set`](Self::portal_set).
    pub kernel_path: bool,
    /// `xt_recent` remembers which client goes to which endpoint.
    pub recent: bool,
    /// `MASQUERADE --random-fully` (iptables 1.6.2), which spares clients that connect at the
    /// same moment a collision of ports.
    pub random_fully: bool,
}

impl Default for Extensions {
    /// All that is needed at first: a kernel path is, as soon as a portal has one.
    fn default() -> Self {
        Self {
            portal_set: true,
            kernel_path: false,
            recent: true,
            random_fully: true,
        }
    }
}

/// Why a portal that the kernel might serve is the agent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lacking {
    PortalSet,
    KernelPath,
    Recent,
}

impl Lacking {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Lacking::PortalSet => {
                "the kernel has no IP sets, by which it would tell what came through a portal \
                 (modules ip_set and ip_set_hash_ipport)"
            }
            Lacking::KernelPath => {
                "the kernel refused a rule with -m statistic, -m addrtype, MARK or MASQUERADE \
                 (modules xt_statistic, xt_addrtype, xt_mark, xt_MASQUERADE)"
            }
            Lacking::Recent => {
                "the kernel refused a rule with -m recent (module xt_recent), by which it would \
                 keep clients at their endpoint"
            }
        }
    }
}

impl Extensions {
    /// Whether the kernel can serve `path`.
    pub(crate) fn suffice_for(self, path: &KernelPath) -> bool {
        let takes_recent =
            matches!(path.sharing(), Sharing::Sticky(_)) && path.endpoints().len() > 1;
        self.portal_set && self.kernel_path && (self.recent || !takes_recent)
    }

    /// Rules made of all that the kernel path takes, and nothing else.
    pub(crate) fn trial_of_kernel_path(random_fully: bool) -> [String; 3] {
        let random = if random_fully { " --random-fully" } else { "" };
        let mark = Mark::PORTAL;
        [
            format!("-m mark ! --mark {mark}/{mark} -j RETURN"),
            "-m statistic --mode random --probability 0.5 -j MARK --set-xmark 0x0/0x0".to_owned(),
            format!("-m addrtype --src-type LOCAL -j MASQUERADE{random}"),
        ]
    }

    /// A rule that takes `xt_recent`.
    pub(crate) fn trial_of_recent() -> [String; 1] {
        ["-m recent --set --name EDGEMESH-TRIAL --rsource".to_owned()]
    }
}
