//! What a caller may do.

/// What a caller may do. Each role includes the rights of the roles before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Searches, and sees and cancels its own searches.
    #[default]
    User,
    /// Sees and cancels the searches of all clients.
    Operator,
}

impl Role {
    /// All roles. The one with the fewest rights comes first.
    pub const ALL: [Role; 2] = [Role::User, Role::Operator];

    /// Returns its name in files of API keys.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Operator => "operator",
        }
    }

    /// Returns the role with this name, if there is one.
    #[must_use]
    pub fn named(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}
