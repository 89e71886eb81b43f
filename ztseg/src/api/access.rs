//! Who may do what: decided by the caller's credentials as the kernel reports them
//! (`SO_PEERCRED`, unix(7)), at the time of its connect.

use nix::unistd::{Gid, Group, Uid, User};

/// The group whose members may read.
pub const GROUP: &str = "ztseg";

/// A caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id, in the agent's user namespace.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look at things.
    Read,
    /// Change things.
    Change,
}

/// Whether a caller may; `member` says whether it is in [`GROUP`].
///
/// # Errors
/// What to tell it.
pub fn decide(caller: Caller, access: Access, member: impl FnOnce() -> bool) -> Result<(), String> {
    if caller.uid == 0 {
        return Ok(());
    }
    let uid = caller.uid;
    match access {
        Access::Read if member() => Ok(()),
        Access::Read => Err(format!(
            "user {uid} may not read from the ztseg agent: run this as root, or add the user to \
             the group `{GROUP}` and log in again"
        )),
        Access::Change => Err(format!(
            "user {uid} may not change anything in the ztseg agent: run this as root; members of \
             the group `{GROUP}` may only read"
        )),
    }
}

/// Whether a caller is in [`GROUP`], by its effective group or by the group database.
///
/// May wait for a network directory service.
pub fn is_member(caller: Caller) -> bool {
    let Ok(Some(group)) = Group::from_name(GROUP) else { return false };
    if group.gid == Gid::from_raw(caller.gid) {
        return true;
    }
    let user = User::from_uid(Uid::from_raw(caller.uid)).ok().flatten();
    user.is_some_and(|u| u.gid == group.gid || group.mem.contains(&u.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(uid: u32, access: Access, member: bool) -> Result<(), String> {
        decide(Caller { uid, gid: 100 }, access, || member)
    }

    #[test]
    fn root_may_everything_members_may_read_others_nothing() {
        for access in [Access::Read, Access::Change] {
            assert_eq!(asks(0, access, false), Ok(()));
        }
        assert_eq!(asks(1000, Access::Read, true), Ok(()));
        for (access, member) in
            [(Access::Read, false), (Access::Change, false), (Access::Change, true)]
        {
            let error = asks(1000, access, member).expect_err("refused");
            assert!(error.contains("user 1000") && error.contains("root"), "{error}");
        }
    }

    #[test]
    fn a_user_that_nobody_knows_is_no_member() {
        assert!(!is_member(Caller { uid: 3_999_999_999, gid: 3_999_999_999 }));
    }
}
