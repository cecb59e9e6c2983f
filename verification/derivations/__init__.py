"""What claims of several papers share; a paper's folder imports from here and never from another paper's."""
